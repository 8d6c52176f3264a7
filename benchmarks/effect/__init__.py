"""What generated images do to accuracy, on real pictures that come inside packages of public registries."""

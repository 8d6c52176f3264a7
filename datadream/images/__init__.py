"""How generated images relate to photos: distances between both, and how near single images come to the shots."""

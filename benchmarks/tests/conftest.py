"""One thread: beside other work several wait for each other longer than they help."""

import torch

torch.set_num_threads(1)

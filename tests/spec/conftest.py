"""Settings for the tests of the specification."""

import torch

# Its tensors are a few numbers each; a second thread would only wait.
torch.set_num_threads(1)

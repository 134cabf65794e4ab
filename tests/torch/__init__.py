"""The optimizer for PyTorch. The name hides nothing: these tests are imported as tests.torch, from the repository's root."""

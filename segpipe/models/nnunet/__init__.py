"""nnU-Net's fingerprints, plans and trained models, to and from segpipe's. nnU-Net itself is not needed.

Public are ``read_fingerprint`` and ``plan_to_nnunet``. Importing them does not import torch.
"""

from segpipe.models.nnunet.fingerprint import read_fingerprint
from segpipe.models.nnunet.plans import plan_to_nnunet

__all__ = ["plan_to_nnunet", "read_fingerprint"]

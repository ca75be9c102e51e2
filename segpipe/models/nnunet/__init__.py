"""nnU-Net's fingerprints, plans and trained models, to and from segpipe's. nnU-Net itself is not needed."""

"""The science of sub-center ArcFace: tensors in, tensors out. Opens no file, logs nothing, reads no configuration."""

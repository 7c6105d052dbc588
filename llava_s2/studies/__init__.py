"""The paper's experiments on frozen features, one file each: ``llava-s2 study NAME``."""

"""Tables of the pretrained models that `mmx models` lists."""

"""kdump-compressed files ("KDUMP"): header versions 0 to 6, every codec, split sets, incomplete ones."""

"""Pure tensor maths: similarity, segmentation, merging, selection; no model, no config."""

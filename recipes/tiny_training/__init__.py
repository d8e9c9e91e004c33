"""The net, the losses and the batches of the pre-training of `tiny`."""

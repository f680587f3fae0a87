"""SNNK adapters: random features of a hidden state, and a trained readout of them."""

"""Find, download and check the weights of pretrained networks."""

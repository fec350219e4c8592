"""Networks, data, loss and the training loop. Import the modules by name; importing this package does nothing."""

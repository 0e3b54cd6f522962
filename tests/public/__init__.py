"""Other people's models, exported as they are: `make public`."""

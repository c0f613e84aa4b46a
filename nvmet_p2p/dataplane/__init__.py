"""The border to the data plane and the engines behind it."""

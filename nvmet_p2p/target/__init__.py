"""What a target is, sans-IO: configuration, controllers, command families."""

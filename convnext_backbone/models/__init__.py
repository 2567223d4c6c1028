"""The networks: configuration, layers, block, trunk, backbone and classifier."""

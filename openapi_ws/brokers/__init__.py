"""Floor 2, hub: brokers, subclasses of `SocketsManager`."""

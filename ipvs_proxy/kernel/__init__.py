"""From operations to the kernel and back: codecs are sans-IO, sockets are thin."""

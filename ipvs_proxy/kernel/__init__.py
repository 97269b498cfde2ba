"""Applies operations to the kernel and reads its state back: codecs are sans-IO, sockets are thin."""

"""Folders on disk, in object stores and on the Hub, behind one class: `storage.Storage`."""

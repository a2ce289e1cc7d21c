"""One host's replica: names and attributes in the catalog, data in image files, and what is needed to
have them whole again after a crash. Knows nothing of peers.

    VOLUME_DIR/
      identity.json   whose volume this is (`identity`)
      lock            held by the one process that uses the volume
      state.json      whether it was closed in good order, and in which boot of the host
      catalog/        LMDB: inodes, names, extended attributes (`catalog`)
      journal/        namespace changes in their order, until the peer has them durably (`journal`)
      images/XX/INO   the data of each regular file (`images`)
      regions/        which regions of images may differ from the peer's (`regions`)

Two kinds of crash are told apart. A killed process loses nothing that it had written, synced or
not: the kernel holds it. So the order of system calls alone makes each change whole. A power cut
keeps what was synced, and of the rest any part in any order: then every image is suspect, and is
compared with the peer's. A log that is damaged, as no crash leaves it, is told from both (`tails`), and
keeps what is whole when it is repaired (`salvage`).
"""

"""The command ``iscsifsctl``: reads and writes the files of control and monitoring in a mount of iscsifs."""

"""The initiator's sessions on trio: dial, log in, stay alive, log out; a path is a LUN through a session."""

# SPDX-License-Identifier: Apache-2.0
"""The supervisor: the process that starts, watches and replaces fronts and engines.

launch            from a configuration to a running server: everything that is not the loop, and
                  all that can be refused, before anything slow is imported
  ports           listening sockets             gpus, devices   which engines the machine gets
  run_folder      private folder, lock          mps             sharing a GPU
  spawner         starts processes              children        slots, and who fills them
supervisor        the loop: deaths, messages, silence, and what follows from them
  roster          who there is, who works       control         the control socket
  ring_broker     rings for each pair           status          what is told of the server
  shutdown        signals, draining, the end    shared_frames   memory that CPU engines share
  avatar_*        folders (which packages clients may use), catalogue (which versions there
                  are), loader (engines load and forget them), rollout (load, replace, unload);
                  replicas (which engines hold a version), versions, recent_errors
"""

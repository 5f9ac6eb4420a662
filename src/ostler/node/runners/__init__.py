"""The runners: what executes a manifest on this node, each behind `protocol.ports.RunnerPort`."""

"""What the BPF programs and the controller share: structures, maps and programs by name."""

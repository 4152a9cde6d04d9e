"""Where captions come from: files, the hub, prompt sets, and how they are mixed; may import base."""

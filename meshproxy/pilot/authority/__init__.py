"""The authority of a mesh: who is who, certificates that say so for a while, and whom to believe."""

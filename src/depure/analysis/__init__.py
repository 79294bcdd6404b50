"""Analysis: where the robustness of a purified classifier comes from, as plain arrays."""

"""What is said where a policy cannot be carried out."""

INSIDE_COMPILED = (
    "granularity='module' cannot look into compiled blocks; use granularity='last_block' or do not "
    "compile"
)
NOT_ADDITIVE = (
    "correction='always' needs a scheduler that adds its outputs up (flow-matching Euler, Euler, "
    "DDIM without clipping); use correction='auto' or 'never'"
)
OTHER_LENGTH = (
    "guidance='difference' compares the hidden states of the guidance branches, whose sequences "
    "differ in length here (their texts do); use target='output', or guidance='follow'"
)

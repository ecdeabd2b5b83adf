//! Parts, in order, as one block address space; validation of parts; the fact file.

//! vo

//! Rules from their text.

//! What only this store promises.

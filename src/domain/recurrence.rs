//! When a regimen's doses are due.

//! Simulated disks, clocks and random numbers.

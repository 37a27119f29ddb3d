//! Many peers' state machines in virtual time, over seeded links with every fault.

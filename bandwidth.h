// bandwidth.h: how fast this machine reads memory, measured in a moment: what decoding can reach at most.
#ifndef BANDWIDTH_H
#define BANDWIDTH_H

// Bytes per second that `threads` threads read together, the best of as many passes as fit into `seconds` (at least
// one). Takes 256 MB for the time of the call and as long as a pass or two to fill them; the last-level cache of a
// processor is smaller, at least the share of it that one has. 0 when there is not that much memory.
double read_bandwidth(int threads, double seconds);

#endif

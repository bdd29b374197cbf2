/* SPDX-License-Identifier: GPL-2.0 */
/* == Tail calls == */

/* The programs that are tail-called, by their index in `programs`. */
enum program_index {
	PROGRAM_REJECT = 0,
	PROGRAM_ICMP_ERROR = 1,
	PROGRAM_SCTP_CHECKSUM = 2,
	PROGRAM_UPLINK_ERROR = 3,
	PROGRAM_FRAGMENT_FROM_POD = 4,
	PROGRAM_FRAGMENT_TO_POD = 5,
	PROGRAM_COUNT = 6,
};

/* The programs of an earlier generation that packets may meet, by their index in `predecessor`. */
enum predecessor_index {
	PREDECESSOR_FROM_POD = 0,
	PREDECESSOR_TO_POD = 1,
	PREDECESSOR_FROM_UPLINK = 2,
	PREDECESSOR_COUNT = 3,
};

/* Indexes into skb->cb, which survives a tail call: the arguments of the program that is called. */
enum tail_argument {
	ARGUMENT_DIRECTION = 0,
	ARGUMENT_PORTS_DIFFERENCE = 0,
	ARGUMENT_SEND_BACK = 1,
};

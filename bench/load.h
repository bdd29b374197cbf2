/* What the two halves of the load generator share. */
#ifndef LOAD_H
#define LOAD_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_AT_ONCE 64
#define MESSAGE_MAX 16384
#define NS_PER_SECOND 1000000000ull

extern volatile sig_atomic_t stopped;	/* SIGTERM or SIGINT came */

static inline void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

struct target {
	struct sockaddr_storage address;
	socklen_t length;
};

static inline struct target parse_target(const char *address, const char *port)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM }, *found;
	struct target target = {};
	int error = getaddrinfo(address, port, &hints, &found);

	if (error) {
		fprintf(stderr, "load: %s port %s: %s\n", address, port, gai_strerror(error));
		exit(2);
	}
	memcpy(&target.address, found->ai_addr, found->ai_addrlen);
	target.length = found->ai_addrlen;
	freeaddrinfo(found);
	return target;
}

static inline void watch(int poll, int handle, uint32_t events, uint64_t data)
{
	struct epoll_event event = { .events = events, .data.u64 = data };

	if (epoll_ctl(poll, EPOLL_CTL_ADD, handle, &event))
		die("epoll_ctl");
}

int serve(const char *address, const char *port);
int run_client(int count, char **words);	/* -1: the words make no sense */

#endif

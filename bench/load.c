/*
 * A load generator that costs little, so that what it measures is the path and not itself: one thread, epoll, one request and
 * one reply in flight per connection.
 *
 *   load server ADDRESS PORT                                    TCP and UDP echo, until SIGTERM; says "ready" once it listens
 *   load client short|keepalive tcp|udp [-c CONNECTIONS] [-s SECONDS] [-n REQUESTS] [-w WARM_UP_SECONDS] [-b BYTES]
 *               [-r REQUESTS_PER_SECOND] ADDRESS... PORT        prints one line of JSON
 *
 * `short`: a socket for each request, closed by the client. `keepalive`: the same sockets all the time. With several
 * addresses each new socket takes the next one. A run ends after -s seconds or -n requests, whichever comes first.
 * With -r the requests are due at fixed times, whatever became of those before; a latency counts from when its request was
 * due, and what is unanswered at the end counts with the time that it has waited, so no stall hides what it held up.
 */
#include "load.h"

volatile sig_atomic_t stopped;

static void stop(int signal_number)
{
	(void)signal_number;
	stopped = 1;
}

static int usage(void)
{
	fputs("usage: load server ADDRESS PORT\n"
	      "       load client short|keepalive tcp|udp [-c CONNECTIONS] [-s SECONDS] [-n REQUESTS] [-w SECONDS] [-b BYTES]"
	      " [-r RATE] ADDRESS... PORT\n", stderr);
	return 2;
}

int main(int count, char **words)
{
	int status = -1;

	signal(SIGTERM, stop);
	signal(SIGINT, stop);
	if (count == 4 && !strcmp(words[1], "server"))
		return serve(words[2], words[3]);
	if (count >= 6 && !strcmp(words[1], "client"))
		status = run_client(count - 2, words + 2);
	return status < 0 ? usage() : status;
}

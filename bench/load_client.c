/* The client: keeps one request in flight on each of its connections, or sends at a fixed rate; and counts. */
#include "load.h"
#include "histogram.h"
#include <sys/prctl.h>

#define CONNECTIONS_MAX 4096
#define TARGETS_MAX 1024
#define ERRNO_MAX 160
#define TIMEOUT_NS (2 * NS_PER_SECOND)	/* then a request counts as failed with ETIMEDOUT, and its socket is replaced */
#define WAIT_MAX_NS (NS_PER_SECOND / 10)	/* for events, and between two sweeps */

static char message[MESSAGE_MAX];

struct connection {
	int handle;	/* -1: none */
	bool idle, open, sent;	/* idle: listed in client.idle */
	uint32_t generation;	/* of the socket: an event that was queued for an earlier one is stale */
	uint64_t begin_ns;	/* of the request; at a fixed rate when it was due, however late it could be sent */
	uint64_t since_ns;	/* when the wait for the peer began */
};

struct client {
	bool keepalive, datagrams;
	unsigned connection_count, bytes, target_count, next_target;
	double seconds, warm_up_seconds;
	uint64_t requests_max, requests;
	uint64_t interval_ns, due_ns;	/* between two requests, and of the next one; 0: each follows the reply before it */
	struct target targets[TARGETS_MAX];
	struct connection connections[CONNECTIONS_MAX];
	unsigned idle[CONNECTIONS_MAX], idle_count;
	int poll;
	struct histogram latency;
	uint64_t errors[ERRNO_MAX], unanswered;
};

static void fail(struct client *client, int number)
{
	client->errors[number < ERRNO_MAX ? number : 0]++;
}

static void send_request(struct client *client, struct connection *connection)
{
	connection->sent = true;
	connection->since_ns = now_ns();
	if (send(connection->handle, message, client->bytes, MSG_NOSIGNAL) < 0 && errno != EAGAIN)
		fail(client, errno);
}

static void open_connection(struct client *client, struct connection *connection);

/* `begin_ns` is what the latency counts from: of `short` it includes the making of the socket. */
static void begin_request(struct client *client, struct connection *connection, uint64_t begin_ns)
{
	connection->begin_ns = begin_ns;
	if (client->keepalive)
		send_request(client, connection);
	else
		open_connection(client, connection);
}

/* A connection with nothing to do: its next request at once, or when one is due. */
static void next_request(struct client *client, struct connection *connection)
{
	if (!client->interval_ns) {
		begin_request(client, connection, now_ns());
		return;
	}
	connection->idle = true;
	client->idle[client->idle_count++] = connection - client->connections;
}

static void on_open(struct client *client, struct connection *connection)
{
	connection->open = true;
	if (client->keepalive)
		next_request(client, connection);
	else
		send_request(client, connection);
}

/* Edge-triggered, both directions: one epoll_ctl per socket. */
static void open_connection(struct client *client, struct connection *connection)
{
	const struct target *target = &client->targets[client->next_target++ % client->target_count];
	int kind = client->datagrams ? SOCK_DGRAM : SOCK_STREAM, on = 1;
	uint64_t index = connection - client->connections;

	connection->since_ns = now_ns();
	connection->open = connection->sent = false;
	connection->generation++;
	connection->handle = socket(target->address.ss_family, kind | SOCK_NONBLOCK, 0);
	if (connection->handle < 0)
		die("socket");
	if (!client->datagrams)
		setsockopt(connection->handle, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (connect(connection->handle, (const struct sockaddr *)&target->address, target->length) && errno != EINPROGRESS) {
		fail(client, errno);
		close(connection->handle);
		connection->handle = -1;	/* the sweep tries again: no busy loop where the ports are used up */
		return;
	}
	watch(client->poll, connection->handle, EPOLLIN | EPOLLOUT | EPOLLET, index | (uint64_t)connection->generation << 32);
	if (client->datagrams)
		on_open(client, connection);
}

/* A new socket: at once where it is to stay, else with the next request. */
static void start_over(struct client *client, struct connection *connection)
{
	if (connection->handle >= 0)
		close(connection->handle);
	connection->handle = -1;
	if (client->keepalive)
		open_connection(client, connection);
	else
		next_request(client, connection);
}

static void receive_reply(struct client *client, struct connection *connection)
{
	ssize_t size = recv(connection->handle, message, sizeof(message), 0);

	if (size < 0 && errno == EAGAIN)
		return;
	if (size <= 0) {
		fail(client, size ? errno : ECONNRESET);
		start_over(client, connection);
		return;
	}
	record(&client->latency, now_ns() - connection->begin_ns);
	client->requests++;
	connection->sent = false;
	if (client->keepalive)
		next_request(client, connection);
	else
		start_over(client, connection);
}

static void on_event(struct client *client, const struct epoll_event *event)
{
	struct connection *connection = &client->connections[(uint32_t)event->data.u64];

	if (connection->generation != event->data.u64 >> 32 || connection->handle < 0)
		return;
	if (event->events & EPOLLERR && !connection->idle) {
		int number = 0;
		socklen_t length = sizeof(number);

		getsockopt(connection->handle, SOL_SOCKET, SO_ERROR, &number, &length);
		fail(client, number);
		start_over(client, connection);
	} else if (connection->sent) {
		receive_reply(client, connection);
	} else if (!connection->open && event->events & EPOLLOUT) {
		on_open(client, connection);
	}
}

/* Replace what has waited too long for an answer, or could not be opened. */
static void sweep(struct client *client)
{
	uint64_t now = now_ns();

	for (unsigned i = 0; i < client->connection_count; i++) {
		struct connection *connection = &client->connections[i];

		if (connection->idle || (connection->handle >= 0 && now - connection->since_ns < TIMEOUT_NS))
			continue;
		if (connection->handle >= 0)
			fail(client, ETIMEDOUT);
		start_over(client, connection);
	}
}

/* Those that find no free connection stay due, and their latency grows: a stall counts for all that it held up. */
static void send_what_is_due(struct client *client, uint64_t now)
{
	while (client->idle_count && client->due_ns <= now) {
		struct connection *connection = &client->connections[client->idle[--client->idle_count]];

		connection->idle = false;
		begin_request(client, connection, client->due_ns);
		client->due_ns += client->interval_ns;
	}
}

static uint64_t wait_ns(const struct client *client, uint64_t now)
{
	if (!client->interval_ns || !client->idle_count || client->due_ns > now + WAIT_MAX_NS)
		return WAIT_MAX_NS;
	return client->due_ns > now ? client->due_ns - now : 0;
}

static void poll_until(struct client *client, uint64_t end_ns)
{
	struct epoll_event events[EVENTS_AT_ONCE];
	uint64_t next_sweep = now_ns() + WAIT_MAX_NS, now;

	while (!stopped && client->requests < client->requests_max && (now = now_ns()) < end_ns) {
		if (client->interval_ns)
			send_what_is_due(client, now);
		struct timespec pause = { .tv_nsec = wait_ns(client, now_ns()) };
		int count = epoll_pwait2(client->poll, events, EVENTS_AT_ONCE, &pause, NULL);

		for (int i = 0; i < count; i++)
			on_event(client, &events[i]);
		if (now >= next_sweep) {
			sweep(client);
			next_sweep = now + WAIT_MAX_NS;
		}
	}
}

/* What was due and has no answer yet has waited at least until now. */
static void count_unanswered(struct client *client, uint64_t now)
{
	for (unsigned i = 0; i < client->connection_count; i++) {
		const struct connection *connection = &client->connections[i];

		if (connection->idle || connection->handle < 0 || (client->keepalive && !connection->sent))
			continue;
		record(&client->latency, now - connection->begin_ns);
		client->unanswered++;
	}
	for (; client->due_ns < now; client->due_ns += client->interval_ns) {
		record(&client->latency, now - client->due_ns);
		client->unanswered++;
	}
}

static void report(const struct client *client, double seconds)
{
	const struct histogram *latency = &client->latency;
	const char *separator = "";

	printf("{\"requests\": %llu, \"unanswered\": %llu, \"seconds\": %.6f, \"rate\": %.1f, \"latency_us\": {"
	       "\"mean\": %.2f, \"min\": %.2f, \"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p999\": %.2f, \"max\": %.2f}, \"errors\": {",
	       (unsigned long long)client->requests, (unsigned long long)client->unanswered, seconds, client->requests / seconds,
	       latency->total ? latency->sum / 1e3 / latency->total : 0, latency->smallest / 1e3,
	       percentile(latency, 0.5) / 1e3, percentile(latency, 0.9) / 1e3, percentile(latency, 0.99) / 1e3,
	       percentile(latency, 0.999) / 1e3, latency->largest / 1e3);
	for (int number = 0; number < ERRNO_MAX; number++) {
		if (!client->errors[number])
			continue;
		const char *name = strerrorname_np(number);

		printf("%s\"%s\": %llu", separator, number && name ? name : "unknown", (unsigned long long)client->errors[number]);
		separator = ", ";
	}
	puts("}}");
}

static bool parse_options(struct client *client, int count, char **words)
{
	int option;
	double rate = 0;

	while ((option = getopt(count, words, "c:s:n:w:b:r:")) != -1) {
		switch (option) {
		case 'c': client->connection_count = atoi(optarg); break;
		case 's': client->seconds = atof(optarg); break;
		case 'n': client->requests_max = strtoull(optarg, NULL, 10); break;
		case 'w': client->warm_up_seconds = atof(optarg); break;
		case 'b': client->bytes = atoi(optarg); break;
		case 'r': rate = atof(optarg); break;
		default: return false;
		}
	}
	if (rate > 0)
		client->interval_ns = NS_PER_SECOND / rate;
	for (int i = optind; i < count - 1 && client->target_count < TARGETS_MAX; i++)
		client->targets[client->target_count++] = parse_target(words[i], words[count - 1]);
	return client->target_count && client->connection_count - 1 < CONNECTIONS_MAX && client->bytes - 1 < MESSAGE_MAX &&
	       client->seconds > 0;
}

int run_client(int count, char **words)
{
	static struct client client = {
		.connection_count = 8, .bytes = 64, .seconds = 5, .warm_up_seconds = 0, .requests_max = UINT64_MAX,
	};

	client.keepalive = !strcmp(words[0], "keepalive");
	client.datagrams = !strcmp(words[1], "udp");
	if ((!client.keepalive && strcmp(words[0], "short")) || (!client.datagrams && strcmp(words[1], "tcp")) ||
	    !parse_options(&client, count - 1, words + 1))
		return -1;
	client.poll = epoll_create1(0);
	prctl(PR_SET_TIMERSLACK, 1);
	client.due_ns = now_ns();
	for (unsigned i = 0; i < client.connection_count; i++) {
		client.connections[i].handle = -1;
		start_over(&client, &client.connections[i]);
	}
	poll_until(&client, now_ns() + client.warm_up_seconds * NS_PER_SECOND);
	memset(&client.latency, 0, sizeof(client.latency));
	memset(client.errors, 0, sizeof(client.errors));
	client.requests = 0;

	uint64_t begin = now_ns();
	poll_until(&client, begin + client.seconds * NS_PER_SECOND);
	uint64_t end = now_ns();
	if (client.interval_ns)
		count_unanswered(&client, end);
	report(&client, (end - begin) / 1e9);
	return 0;
}

/* The client: keeps one request in flight on each of its connections, and counts. */
#include "load.h"
#include "histogram.h"

#define CONNECTIONS_MAX 4096
#define TARGETS_MAX 64
#define ERRNO_MAX 160
#define TIMEOUT_NS (2 * NS_PER_SECOND)	/* then a request counts as failed with ETIMEDOUT, and its socket is replaced */
#define SWEEP_NS (NS_PER_SECOND / 10)

static char message[MESSAGE_MAX];

struct connection {
	int handle;	/* -1: none */
	bool sent;
	uint32_t generation;	/* of the socket: an event that was queued for an earlier one is stale */
	uint64_t begin_ns;
};

struct client {
	bool keepalive, datagrams;
	unsigned connection_count, bytes, target_count, next_target;
	double seconds, warm_up_seconds;
	uint64_t requests_max, requests;
	struct target targets[TARGETS_MAX];
	struct connection connections[CONNECTIONS_MAX];
	int poll;
	struct histogram latency;
	uint64_t errors[ERRNO_MAX];
};

static void fail(struct client *client, int number)
{
	client->errors[number < ERRNO_MAX ? number : 0]++;
}

static void send_request(struct client *client, struct connection *connection)
{
	connection->sent = true;
	if (client->keepalive)
		connection->begin_ns = now_ns();
	if (send(connection->handle, message, client->bytes, MSG_NOSIGNAL) < 0 && errno != EAGAIN)
		fail(client, errno);
}

/* Edge-triggered, both directions: one epoll_ctl per socket. Latency of `short` counts from before the socket is made. */
static void open_connection(struct client *client, struct connection *connection)
{
	const struct target *target = &client->targets[client->next_target++ % client->target_count];
	int kind = client->datagrams ? SOCK_DGRAM : SOCK_STREAM, on = 1;
	uint64_t index = connection - client->connections;

	connection->begin_ns = now_ns();
	connection->sent = false;
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
		send_request(client, connection);
}

static void reopen(struct client *client, struct connection *connection)
{
	if (connection->handle >= 0)
		close(connection->handle);
	open_connection(client, connection);
}

static void receive_reply(struct client *client, struct connection *connection)
{
	ssize_t size = recv(connection->handle, message, sizeof(message), 0);

	if (size < 0 && errno == EAGAIN)
		return;
	if (size <= 0) {
		fail(client, size ? errno : ECONNRESET);
		reopen(client, connection);
		return;
	}
	record(&client->latency, now_ns() - connection->begin_ns);
	client->requests++;
	if (client->keepalive)
		send_request(client, connection);
	else
		reopen(client, connection);
}

static void on_event(struct client *client, const struct epoll_event *event)
{
	struct connection *connection = &client->connections[(uint32_t)event->data.u64];

	if (connection->generation != event->data.u64 >> 32)
		return;
	if (event->events & EPOLLERR) {
		int number = 0;
		socklen_t length = sizeof(number);

		getsockopt(connection->handle, SOL_SOCKET, SO_ERROR, &number, &length);
		fail(client, number);
		reopen(client, connection);
	} else if (connection->sent) {
		receive_reply(client, connection);
	} else if (event->events & EPOLLOUT) {
		send_request(client, connection);
	}
}

/* Replace what has waited too long for an answer, or could not be opened. */
static void sweep(struct client *client)
{
	uint64_t now = now_ns();

	for (unsigned i = 0; i < client->connection_count; i++) {
		struct connection *connection = &client->connections[i];

		if (connection->handle >= 0 && now - connection->begin_ns < TIMEOUT_NS)
			continue;
		if (connection->handle >= 0)
			fail(client, ETIMEDOUT);
		reopen(client, connection);
	}
}

static void poll_until(struct client *client, uint64_t end_ns)
{
	struct epoll_event events[EVENTS_AT_ONCE];
	uint64_t next_sweep = now_ns() + SWEEP_NS, now;

	while (!stopped && client->requests < client->requests_max && (now = now_ns()) < end_ns) {
		int count = epoll_wait(client->poll, events, EVENTS_AT_ONCE, 100);

		for (int i = 0; i < count; i++)
			on_event(client, &events[i]);
		if (now >= next_sweep) {
			sweep(client);
			next_sweep = now + SWEEP_NS;
		}
	}
}

static void report(const struct client *client, double seconds)
{
	const struct histogram *latency = &client->latency;
	const char *separator = "";

	printf("{\"requests\": %llu, \"seconds\": %.6f, \"rate\": %.1f, \"latency_us\": {\"mean\": %.2f, \"min\": %.2f, "
	       "\"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p999\": %.2f, \"max\": %.2f}, \"errors\": {",
	       (unsigned long long)latency->total, seconds, latency->total / seconds,
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

	while ((option = getopt(count, words, "c:s:n:w:b:")) != -1) {
		switch (option) {
		case 'c': client->connection_count = atoi(optarg); break;
		case 's': client->seconds = atof(optarg); break;
		case 'n': client->requests_max = strtoull(optarg, NULL, 10); break;
		case 'w': client->warm_up_seconds = atof(optarg); break;
		case 'b': client->bytes = atoi(optarg); break;
		default: return false;
		}
	}
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
	for (unsigned i = 0; i < client.connection_count; i++)
		open_connection(&client, &client.connections[i]);
	poll_until(&client, now_ns() + client.warm_up_seconds * NS_PER_SECOND);
	memset(&client.latency, 0, sizeof(client.latency));
	memset(client.errors, 0, sizeof(client.errors));
	client.requests = 0;

	uint64_t begin = now_ns();
	poll_until(&client, begin + client.seconds * NS_PER_SECOND);
	report(&client, (now_ns() - begin) / 1e9);
	return 0;
}

/* SPDX-License-Identifier: Apache-2.0
 *
 * kproxy-ebpf-cni, the last plugin of a node's CNI chain: a new pod's link has its programs before the pod starts.
 *
 * It decides nothing. It hands CNI_…, its standard input and the pod's network namespace to the daemon, and what the
 * daemon answers to the container runtime: see kproxy_ebpf/cni/protocol.py for both messages. So a plugin of before
 * goes on working with a newer daemon. Only what has to succeed without a daemon is done here: VERSION, DEL and GC. The
 * kernel takes a pod's programs away with its link, so there is nothing to release.
 *
 * Standard output carries the protocol and nothing else; nothing is logged.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DAEMON "/run/kproxy-ebpf/cni.sock"
#define VERSIONS "\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\""
#define BLANKS " \t\r\n"

enum limits {
	MESSAGE_BYTES = 1 << 20, /* of a network configuration, and of an answer */
	VERSION_BYTES = 16,
	WAIT_SECONDS = 10, /* for a daemon that is being replaced */
	STATUS_SECONDS = 3, /* the kubelet asks every few seconds, and waits for the answer */
	ANSWER_SECONDS = 30,
	PAUSE_MS = 50,
};

/* Error codes of the CNI specification. */
enum code {
	NO_CONTAINER = 3,
	INVALID_ENVIRONMENT = 4,
	IO_FAILURE = 5,
	INVALID_CONFIGURATION = 7,
	TRY_AGAIN_LATER = 11,
	NOT_AVAILABLE = 50, /* of STATUS alone */
};

struct answer {
	uint32_t exit_code;
	uint32_t bytes; /* of what follows, for standard output */
};

/* What came of asking the daemon once. */
enum outcome { ANSWERED, AWAY, SLOW, NOT_ROOTS, FAILED };

static char configuration[MESSAGE_BYTES + 1];
static char request[MESSAGE_BYTES * 2];
static size_t request_bytes;
static char output[MESSAGE_BYTES];
static char version[VERSION_BYTES] = "1.0.0";

static int fail(enum code code, const char *message, const char *details)
{
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"%s\",\"details\":\"%s\"}\n", version, code, message, details);
	return EXIT_FAILURE;
}

static double now_seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* The value of a member of the outermost object, NULL where it has none. What is no JSON may be read wrongly, but never
 * beyond its end; the daemon reads it properly.
 */
static const char *member(const char *json, const char *name)
{
	int depth = 0;

	for (const char *at = json; *at; at++) {
		if (*at == '{' || *at == '[')
			depth++;
		if (*at == '}' || *at == ']')
			depth--;
		if (*at != '"')
			continue;
		const char *text = ++at;

		while (*at && *at != '"')
			at += *at == '\\' && at[1] ? 2 : 1;
		if (!*at)
			return NULL;
		const char *next = at + 1 + strspn(at + 1, BLANKS);

		if (depth == 1 && *next == ':' && (size_t)(at - text) == strlen(name) && !strncmp(text, name, strlen(name)))
			return next + 1 + strspn(next + 1, BLANKS);
	}
	return NULL;
}

/* Copy the text of a member, if it has only characters of `allowed` (NULL: any that JSON does not escape) and fits. */
static bool copy_member(const char *name, const char *allowed, char *copy, size_t room)
{
	const char *value = member(configuration, name);

	if (!value || *value != '"')
		return false;
	size_t length = strcspn(++value, "\"\\");

	if (!length || length >= room || value[length] != '"' || (allowed && strspn(value, allowed) != length))
		return false;
	memcpy(copy, value, length);
	copy[length] = '\0';
	return true;
}

static bool read_configuration(void)
{
	size_t bytes = 0;
	ssize_t got;

	while ((got = read(STDIN_FILENO, configuration + bytes, MESSAGE_BYTES - bytes)) > 0)
		bytes += (size_t)got;
	return got == 0 && bytes < MESSAGE_BYTES;
}

static void append(const char *text, size_t length)
{
	size_t room = sizeof(request) - request_bytes;

	length = length < room ? length : room; /* a message that is cut is no JSON, which the daemon says */
	memcpy(request + request_bytes, text, length);
	request_bytes += length;
}

static void compose_request(void)
{
	static const char *const names[] = { "COMMAND", "CONTAINERID", "NETNS", "IFNAME", "ARGS", "PATH" };
	char name[32];

	append("KPROXY_CNI=1", sizeof("KPROXY_CNI=1"));
	for (size_t number = 0; number < sizeof(names) / sizeof(*names); number++) {
		snprintf(name, sizeof(name), "CNI_%s", names[number]);
		const char *value = getenv(name);

		if (!value)
			continue;
		append(name, strlen(name));
		append("=", 1);
		append(value, strlen(value) + 1);
	}
	append("", 1);
	append(configuration, strlen(configuration));
}

/* Send the request, with the descriptor of the network namespace in its first message (-1: there is none). */
static bool send_request(int daemon, int netns)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(netns))];
	} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(netns)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
	size_t sent = 0;

	memcpy(CMSG_DATA(&control.header), &netns, sizeof(netns));
	while (sent < request_bytes) {
		struct iovec rest = { request + sent, request_bytes - sent };
		struct msghdr message = { .msg_iov = &rest, .msg_iovlen = 1 };

		if (!sent && netns >= 0) {
			message.msg_control = &control;
			message.msg_controllen = sizeof(control.bytes);
		}
		ssize_t got = sendmsg(daemon, &message, MSG_NOSIGNAL);

		if (got < 0)
			return false;
		sent += (size_t)got;
	}
	return shutdown(daemon, SHUT_WR) == 0;
}

static bool receive(int daemon, void *buffer, size_t bytes)
{
	ssize_t got = recv(daemon, buffer, bytes, MSG_WAITALL);

	if (got >= 0 && (size_t)got < bytes)
		errno = ECONNRESET; /* the daemon has ended */
	return got >= 0 && (size_t)got == bytes;
}

/* Whether this is root's socket. Another user who can put one in its place must not be told of pods. */
static bool is_roots(int daemon)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	return getsockopt(daemon, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0;
}

static enum outcome exchange(int daemon, const struct sockaddr_un *address, int netns, struct answer *answer)
{
	struct timeval patience = { .tv_sec = ANSWER_SECONDS };

	setsockopt(daemon, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(daemon, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(daemon, (const struct sockaddr *)address, sizeof(*address)) < 0)
		return errno == ENOENT || errno == ECONNREFUSED ? AWAY : FAILED;
	if (!is_roots(daemon))
		return NOT_ROOTS;
	if (send_request(daemon, netns) && receive(daemon, answer, sizeof(*answer))) {
		if (answer->bytes > sizeof(output)) {
			errno = EMSGSIZE;
			return FAILED;
		}
		if (receive(daemon, output, answer->bytes))
			return ANSWERED;
	}
	if (errno == ECONNRESET || errno == EPIPE)
		return AWAY;
	return errno == EAGAIN ? SLOW : FAILED;
}

static enum outcome ask_once(const struct sockaddr_un *address, int netns, struct answer *answer)
{
	int daemon = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (daemon < 0)
		return FAILED;
	enum outcome outcome = exchange(daemon, address, netns, answer);
	int reason = errno;

	close(daemon);
	errno = reason;
	return outcome;
}

/* Let the daemon answer. One that is being replaced comes back: all that it may be asked can be asked again. */
static int ask_daemon(int netns, bool is_status)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = DAEMON };
	const struct timespec pause = { .tv_nsec = PAUSE_MS * 1000000L };
	double deadline = now_seconds() + (is_status ? STATUS_SECONDS : WAIT_SECONDS);
	enum code away = is_status ? NOT_AVAILABLE : TRY_AGAIN_LATER;
	struct answer answer;
	enum outcome outcome;

	if (member(configuration, "socket") && !copy_member("socket", NULL, address.sun_path, sizeof(address.sun_path)))
		return fail(INVALID_CONFIGURATION, "socket is no path that a socket can have", "");
	compose_request();
	while ((outcome = ask_once(&address, netns, &answer)) == AWAY && now_seconds() < deadline)
		nanosleep(&pause, NULL);
	switch (outcome) {
	case ANSWERED:
		if (fwrite(output, 1, answer.bytes, stdout) != answer.bytes || fflush(stdout) != 0)
			return EXIT_FAILURE;
		return (int)answer.exit_code;
	case AWAY:
		return fail(away, "the kproxy-ebpf daemon of this node does not run", address.sun_path);
	case SLOW:
		return fail(away, "the kproxy-ebpf daemon of this node did not answer in time", address.sun_path);
	case NOT_ROOTS:
		return fail(IO_FAILURE, "the socket of the kproxy-ebpf daemon is not root's", address.sun_path);
	default:
		return fail(IO_FAILURE, "the kproxy-ebpf daemon of this node can't be asked", strerror(errno));
	}
}

/* ADD and CHECK are about a network namespace. */
static int ask_about_pod(void)
{
	const char *path = getenv("CNI_NETNS");

	if (!path || !*path)
		return fail(INVALID_ENVIRONMENT, "CNI_NETNS is not set", "");
	int netns = open(path, O_RDONLY | O_CLOEXEC);

	if (netns < 0)
		return fail(errno == ENOENT ? NO_CONTAINER : IO_FAILURE, "CNI_NETNS can't be opened", strerror(errno));
	return ask_daemon(netns, false);
}

int main(void)
{
	const char *command = getenv("CNI_COMMAND");
	bool is_read = read_configuration();

	copy_member("cniVersion", "0123456789.", version, sizeof(version));
	if (!command)
		return fail(INVALID_ENVIRONMENT, "CNI_COMMAND is not set: container runtimes run this program", "");
	if (!strcmp(command, "DEL") || !strcmp(command, "GC"))
		return EXIT_SUCCESS;
	if (!strcmp(command, "VERSION")) {
		printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[" VERSIONS "]}\n", version);
		return EXIT_SUCCESS;
	}
	if (!is_read)
		return fail(IO_FAILURE, "the network configuration can't be read, or is larger than 1 MiB", "");
	if (!strcmp(command, "ADD") || !strcmp(command, "CHECK"))
		return ask_about_pod();
	if (!strcmp(command, "STATUS"))
		return ask_daemon(-1, true);
	return fail(INVALID_ENVIRONMENT, "CNI_COMMAND is none of ADD, DEL, CHECK, STATUS, GC and VERSION", "");
}

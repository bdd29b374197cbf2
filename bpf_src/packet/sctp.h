/* SPDX-License-Identifier: GPL-2.0 */
/*
 * SCTP's checksum is a CRC32c over the whole packet (RFC 9260, 6.8): it covers the ports, but not the addresses. CRCs
 * are linear: the new checksum is the old one XOR the CRC of the difference of the ports, followed by as many zero
 * bytes as there are behind the ports. To append n zero bytes is to multiply by x^(8n) modulo the polynomial, which
 * takes one multiplication for each bit that is set in n.
 */
#define CRC32C_POLYNOMIAL 0x82f63b78u /* bits reversed */
#define CRC32C_ONE 0x80000000u	     /* x^0, bits reversed */
#define SCTP_LENGTH_BITS 16
#define SCTP_CHECKSUM_OFFSET 8
#define SCTP_HEADER_BYTES 12

/* x^(8 * 2^bit) modulo the polynomial, bits reversed. */
static __always_inline __u32 crc32c_shift(int bit)
{
	switch (bit) {
	case 0: return 0x00800000;
	case 1: return 0x00008000;
	case 2: return 0x82f63b78;
	case 3: return 0x6ea2d55c;
	case 4: return 0x18b8ea18;
	case 5: return 0x510ac59a;
	case 6: return 0xb82be955;
	case 7: return 0xb8fdb1e7;
	case 8: return 0x88e56f72;
	case 9: return 0x74c360a4;
	case 10: return 0xe4172b16;
	case 11: return 0x0d65762a;
	case 12: return 0x35d73a62;
	case 13: return 0x28461564;
	case 14: return 0xbf455269;
	default: return 0xe2ea32dc;
	}
}

static __always_inline __u32 crc32c_multiply(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 31; i >= 0; i--) {
		product ^= b & -((a >> i) & 1);
		b = (b >> 1) ^ (CRC32C_POLYNOMIAL & -(b & 1));
	}
	return product;
}

/*
 * The change (XOR) of the checksum of a packet of `bytes`, if its first four bytes change by `difference` (XOR). A bit
 * that is not set multiplies by 1: the verifier would walk a branch for each bit again and again, at each start.
 */
static __always_inline __u32 crc32c_difference(__u32 difference, __u32 bytes)
{
#pragma unroll
	for (int bit = 0; bit < SCTP_LENGTH_BITS; bit++) {
		__u32 is_set = -(bytes >> bit & 1);
		difference = crc32c_multiply((crc32c_shift(bit) & is_set) | (CRC32C_ONE & ~is_set), difference);
	}
	return difference;
}

/* Adjust the checksum of a packet whose ports have changed by `difference`. Returns false if the kernel refused. */
static __always_inline bool adjust_sctp_checksum(const struct packet *packet, __u32 difference)
{
	__u32 checksum = packet->transport_offset + SCTP_CHECKSUM_OFFSET;
	__le32 crc;

	if (bpf_skb_load_bytes(packet->skb, checksum, &crc, sizeof(crc)))
		return false;
	/* If the checksum is still to be computed when the packet is sent, the field keeps its value. */
	if (!has_partial_checksum(packet->skb, checksum))
		crc ^= crc32c_difference(difference, packet->end_offset - packet->transport_offset);
	return !bpf_skb_store_bytes(packet->skb, checksum, &crc, sizeof(crc), BPF_F_RECOMPUTE_CSUM);
}

package datadir

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
)

// Kinds of records in etcd's log (server/storage/wal/wal.go).
const (
	kindMetadata = 1
	kindEntry    = 2
	kindState    = 3
	kindCRC      = 4
	kindSnapshot = 5
)

const (
	frameSize  = 8
	sectorSize = 512 // the least that a disk writes as one
	// maxRecord is far above what etcd takes for one request (1.5 MiB by default).
	maxRecord = 16 << 20
)

// errTorn is the end of a log that was being written when the power went.
var errTorn = errors.New("the last record is not complete")

// record is one of etcd's log (walpb.Record).
type record struct {
	kind uint64
	crc  uint32
	data []byte // of the decoder, until the next record
}

// decoder reads the records of one file, as etcd's own does
// (server/storage/wal/decoder.go): an eight-byte frame, the record, padding to
// eight bytes. Each checksum goes on from the one before; the first record of a
// file has that of the file before.
type decoder struct {
	in    io.Reader
	size  int64 // of the file
	at    int64 // where the next record begins
	crc   uint32
	frame [frameSize]byte
	buf   []byte
}

// next is the next record; io.EOF at the end of the file, or where the space begins
// that etcd has reserved.
func (d *decoder) next() (record, error) {
	length, padded, err := d.nextFrame()
	if err != nil {
		return record{}, err
	}
	if int64(cap(d.buf)) < padded {
		d.buf = make([]byte, padded)
	}
	data := d.buf[:padded]
	if _, err := io.ReadFull(d.in, data); err != nil {
		return record{}, tornAtEnd(err)
	}
	r, err := parseRecord(data[:length])
	if err == nil {
		err = d.check(r)
	}
	if err != nil && d.torn(data) {
		return record{}, errTorn
	}
	if err != nil {
		return record{}, fmt.Errorf("the record at byte %d: %w", d.at, err)
	}
	d.at += frameSize + padded
	return r, nil
}

// nextFrame is the length of the next record, without and with its padding. The
// highest bit of the frame says that there is some, three others how much.
func (d *decoder) nextFrame() (length, padded int64, err error) {
	if _, err := io.ReadFull(d.in, d.frame[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return 0, 0, io.EOF
		}
		return 0, 0, tornAtEnd(err)
	}
	frame := binary.LittleEndian.Uint64(d.frame[:])
	if frame == 0 {
		return 0, 0, io.EOF
	}
	length = int64(frame &^ (0xff << 56)) //nolint:gosec // 56 bits
	padded = length
	if frame>>63 == 1 {
		padded += int64(frame >> 56 & 7) //nolint:gosec // three bits
	}
	switch {
	case padded > d.size-d.at-frameSize:
		return 0, 0, errTorn
	case padded > maxRecord:
		return 0, 0, fmt.Errorf("the record at byte %d has %d bytes", d.at, length)
	}
	return length, padded, nil
}

func tornAtEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errTorn
	}
	return err
}

// check compares the checksum of a record, which covers all before it.
func (d *decoder) check(r record) error {
	if r.kind == kindCRC {
		if d.crc != 0 && r.crc != d.crc {
			return errors.New("its checksum does not go on from the one before")
		}
		d.crc = r.crc
		return nil
	}
	sum := crc32.Update(d.crc, crc32.MakeTable(crc32.Castagnoli), r.data)
	if sum != r.crc {
		return errors.New("its checksum is wrong")
	}
	d.crc = sum
	return nil
}

// torn tells whether a bad record was not written to its end, rather than damaged:
// then one of its sectors is as it was reserved, all zeroes.
func (d *decoder) torn(data []byte) bool {
	at := d.at + frameSize
	for len(data) > 0 {
		n := min(sectorSize-at%sectorSize, int64(len(data)))
		if allZero(data[:n]) {
			return true
		}
		at, data = at+n, data[n:]
	}
	return false
}

func allZero(data []byte) bool {
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}

func parseRecord(data []byte) (record, error) {
	f, err := numbers(data)
	r := record{kind: f[1], crc: uint32(f[2])} //nolint:gosec // it has 32 bits
	if err != nil {
		return r, err
	}
	r.data, err = bytesOf(data, 3)
	return r, err
}

// numbers are the first fields of a message that are numbers; those that are not
// there are 0.
func numbers(message []byte) ([4]uint64, error) {
	var found [4]uint64
	err := fields(message, func(number protowire.Number, kind protowire.Type, value []byte) {
		if kind == protowire.VarintType && int(number) < len(found) {
			found[number], _ = protowire.ConsumeVarint(value)
		}
	})
	return found, err
}

// bytesOf is the field of that number, which holds bytes.
func bytesOf(message []byte, wanted protowire.Number) ([]byte, error) {
	var found []byte
	err := fields(message, func(number protowire.Number, kind protowire.Type, value []byte) {
		if kind == protowire.BytesType && number == wanted {
			found, _ = protowire.ConsumeBytes(value)
		}
	})
	return found, err
}

// fields calls tell with each field of a message.
func fields(message []byte, tell func(protowire.Number, protowire.Type, []byte)) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		size := protowire.ConsumeFieldValue(number, kind, message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		tell(number, kind, message[:size])
		message = message[size:]
	}
	return nil
}

package datadir

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

// logFile is one file of a log, as etcd would write it.
type logFile struct {
	data []byte
	crc  uint32
}

// newFile begins a file as etcd does: with the checksum of the file before, and
// whose log it is.
func newFile(before uint32) *logFile {
	f := &logFile{crc: before}
	f.frame(kindCRC, before, nil)
	return f.add(kindMetadata, message(0xa1, 0xc1))
}

// message has numbers as its fields 1, 2, ... .
func message(numbers ...uint64) []byte {
	var m []byte
	for i, n := range numbers {
		m = protowire.AppendTag(m, protowire.Number(i+1), protowire.VarintType)
		m = protowire.AppendVarint(m, n)
	}
	return m
}

func (f *logFile) add(kind uint64, data []byte) *logFile {
	f.crc = crc32.Update(f.crc, crc32.MakeTable(crc32.Castagnoli), data)
	f.frame(kind, f.crc, data)
	return f
}

func (f *logFile) frame(kind uint64, crc uint32, data []byte) {
	r := message(kind, uint64(crc))
	if data != nil {
		r = protowire.AppendTag(r, 3, protowire.BytesType)
		r = protowire.AppendBytes(r, data)
	}
	length, padding := uint64(len(r)), (8-len(r)%8)%8
	if padding > 0 {
		length |= uint64(0x80|padding) << 56
	}
	f.data = binary.LittleEndian.AppendUint64(f.data, length)
	f.data = append(append(f.data, r...), make([]byte, padding)...)
}

func (f *logFile) entry(index, term uint64, payload ...byte) *logFile {
	m := protowire.AppendTag(message(0, term, index), 4, protowire.BytesType)
	return f.add(kindEntry, protowire.AppendBytes(m, payload))
}

func (f *logFile) state(commit uint64) *logFile { return f.add(kindState, message(1, 1, commit)) }

func (f *logFile) snapshot(index, term uint64) *logFile {
	return f.add(kindSnapshot, message(index, term))
}

// reserved is the space that etcd reserves at the end.
func (f *logFile) reserved(n int) []byte { return append(bytes.Clone(f.data), make([]byte, n)...) }

// writeLog is the data directory with these files of a log.
func writeLog(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	wal := filepath.Join(dir, "member", "wal")
	if err := os.MkdirAll(wal, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(wal, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	first  = "0000000000000000-0000000000000000.wal"
	second = "0000000000000001-0000000000000065.wal"
	third  = "0000000000000002-00000000000000c9.wal"
)

func TestLast(t *testing.T) {
	t.Parallel()
	at := func(index, term uint64) Position {
		return Position{Cluster: 0xc1, Member: 0xa1, Index: index, Term: term}
	}
	begun := func() *logFile { return newFile(0).snapshot(0, 0).entry(1, 1).state(1).entry(2, 1) }
	whole := begun().data
	longer := begun().entry(3, 1, bytes.Repeat([]byte("x"), 3000)...).data
	torn := func(keep int) []byte { // of the last record the first bytes came to the disk
		return append(bytes.Clone(longer[:len(whole)+keep]), make([]byte, 8192)...)
	}
	old := begun().entry(100, 1)
	for name, test := range map[string]struct {
		files map[string][]byte
		want  Position
	}{
		"entries":               {map[string][]byte{first: whole}, at(2, 1)},
		"reserved space":        {map[string][]byte{first: begun().reserved(4096)}, at(2, 1)},
		"nothing but its head":  {map[string][]byte{first: newFile(0).snapshot(0, 0).data}, at(0, 0)},
		"other fields":          {map[string][]byte{first: begun().add(kindEntry, append(message(0, 3, 9), protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 7)...)).data}, at(9, 3)},
		"replaced by a leader":  {map[string][]byte{first: begun().entry(3, 1).entry(4, 1).entry(3, 2).data}, at(3, 2)},
		"its own snapshot":      {map[string][]byte{first: begun().entry(3, 1).snapshot(2, 1).data}, at(3, 1)},
		"a leader's snapshot":   {map[string][]byte{first: begun().snapshot(90, 4).state(90).data}, at(90, 4)},
		"entries after that":    {map[string][]byte{first: begun().snapshot(90, 4).entry(91, 4).data}, at(91, 4)},
		"the end cut off":       {map[string][]byte{first: longer[:len(longer)-1000]}, at(2, 1)},
		"within a frame":        {map[string][]byte{first: longer[:len(whole)+4]}, at(2, 1)},
		"torn after the frame":  {map[string][]byte{first: torn(frameSize)}, at(2, 1)},
		"torn later":            {map[string][]byte{first: torn(1200)}, at(2, 1)},
		"complete":              {map[string][]byte{first: torn(len(longer) - len(whole))}, at(3, 1)},
		"two files":             {map[string][]byte{first: old.data, second: newFile(old.crc).state(100).entry(101, 2).reserved(64)}, at(101, 2)},
		"replaced, two files":   {map[string][]byte{first: old.data, second: newFile(old.crc).entry(99, 2).data}, at(99, 2)},
		"a new file's head":     {map[string][]byte{first: old.data, second: newFile(old.crc).state(100).data}, at(100, 1)},
		"own snapshot in a new": {map[string][]byte{first: old.data, second: newFile(old.crc).snapshot(50, 1).data}, at(100, 1)},
		"a leader's in a new":   {map[string][]byte{first: old.data, second: newFile(old.crc).snapshot(200, 5).data}, at(200, 5)},
		"a leader's in between": {map[string][]byte{
			first: old.data, second: newFile(old.crc).snapshot(200, 5).data, third: newFile(7).state(200).data,
		}, at(200, 5)},
		"older ones are not read": {map[string][]byte{first: []byte("damaged"), second: newFile(9).entry(101, 2).data}, at(101, 2)},
		"foreign files": {map[string][]byte{
			first: whole, "9.wal": nil, "0.tmp": whole, "ffffffffffffffff-0000000000000001.wal.broken": nil, "notes.wal": []byte("x"),
		}, at(2, 1)},
	} {
		got, err := Last(writeLog(t, test.files))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestWhatCannotBeRead is an error, and never a position: it would be too low.
func TestWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	good := newFile(0).entry(1, 1).entry(2, 1, bytes.Repeat([]byte("y"), 2000)...).entry(3, 1).data
	flipped := bytes.Clone(good)
	flipped[bytes.Index(flipped, []byte("yyyy"))+500] = 'z'
	headless := (&logFile{}).entry(1, 1).data
	huge := append(bytes.Clone(good), binary.LittleEndian.AppendUint64(nil, maxRecord+8)...)
	for name, test := range map[string]struct {
		files map[string][]byte
		want  string
	}{
		"a flipped byte":         {map[string][]byte{first: flipped}, "its checksum is wrong"},
		"an unknown kind":        {map[string][]byte{first: newFile(0).add(9, nil).data}, "unknown kind 9"},
		"another's checksum":     {map[string][]byte{first: append(bytes.Clone(good), newFile(77).data...)}, "does not go on"},
		"no metadata":            {map[string][]byte{first: headless}, "does not say whose it is"},
		"nothing":                {map[string][]byte{first: nil}, "does not say whose it is"},
		"no message":             {map[string][]byte{first: newFile(0).add(kindEntry, []byte{0xff}).data}, "cannot read the log"},
		"no record":              {map[string][]byte{first: append(binary.LittleEndian.AppendUint64(nil, 8), "\xff\xff\xff\xff\xff\xff\xff\xff"...)}, "the record at byte 0"},
		"a huge record":          {map[string][]byte{first: append(huge, make([]byte, maxRecord+8)...)}, "bytes"},
		"a short one in between": {map[string][]byte{first: good[:len(good)-3], second: newFile(0).data}, errTorn.Error()},
	} {
		got, err := Last(writeLog(t, test.files))
		if err == nil || errors.Is(err, ErrNoData) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %+v, %v; want %q", name, got, err, test.want)
		}
	}
	locked := writeLog(t, nil)
	if err := os.Mkdir(filepath.Join(locked, "member", "wal", first), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := Last(locked); err == nil || errors.Is(err, ErrNoData) {
		t.Errorf("a directory in place of a file: got %+v, %v", got, err)
	}
}

// TestNoData is a first start, not an error.
func TestNoData(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{
		"nothing":        filepath.Join(t.TempDir(), "none"),
		"empty":          t.TempDir(),
		"no log":         writeLog(t, nil),
		"only temporary": writeLog(t, map[string][]byte{"0.tmp": nil}),
	} {
		if got, err := Last(dir); !errors.Is(err, ErrNoData) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func FuzzReadLog(f *testing.F) {
	f.Add(newFile(0).snapshot(1, 1).entry(2, 1, 1, 2, 3).state(2).reserved(100))
	f.Add(newFile(0).entry(2, 1, bytes.Repeat([]byte{1}, 600)...).data[:300])
	f.Add([]byte("\x08\x00\x00\x00\x00\x00\x00\x80\x08\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := readLog(bytes.NewReader(data), int64(len(data)))
		again, againErr := readLog(bytes.NewReader(append(bytes.Clone(data), make([]byte, 4096)...)), int64(len(data)+4096))
		if err == nil && againErr == nil && found != again {
			t.Errorf("with reserved space it is %+v, without %+v", again, found)
		}
	})
}

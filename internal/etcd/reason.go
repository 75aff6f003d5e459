package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const closed = "closed the connection"

// reason says in words for people why a member gave no answer. Wait is how
// long it had, 0 for no limit.
func (m member) reason(err error, wait time.Duration) string {
	switch {
	case late(err) && wait == 0:
		return "does not answer"
	case late(err):
		return "does not answer within " + roughly(wait).String()
	case errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled:
		return "was not asked to the end"
	}
	said := words(rpctypes.ErrorDesc(err))
	if m.tls == nil || (said != closed && !strings.HasPrefix(said, "refuses our certificate")) {
		return said
	}
	// A member that refuses a certificate says why and closes the connection;
	// which of the two arrives is a matter of luck.
	until, expired := expiry(m.tls)
	switch {
	case expired:
		return "refuses our certificate: it expired at " + until.UTC().Format(time.RFC3339)
	case said == closed && len(m.tls.Certificates) == 0:
		return closed + ": it may want a client certificate, and we show none"
	case said == closed:
		return closed + ": it may refuse our certificate"
	}
	return said
}

// roughly rounds what a person is told to two digits or so.
func roughly(d time.Duration) time.Duration {
	if d < 100*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Millisecond)
}

// late tells whether time was up, by our clock or the member's.
func late(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded
}

// expiry is when the certificate that we show ended, if it did.
func expiry(config *tls.Config) (time.Time, bool) {
	if config == nil || len(config.Certificates) == 0 || len(config.Certificates[0].Certificate) == 0 {
		return time.Time{}, false
	}
	leaf, err := x509.ParseCertificate(config.Certificates[0].Certificate[0])
	if err != nil {
		return time.Time{}, false
	}
	now := time.Now()
	if config.Time != nil {
		now = config.Time()
	}
	return leaf.NotAfter, now.After(leaf.NotAfter)
}

// words turns what gRPC says of a connection into plain words. gRPC keeps no
// error values, only their text.
func words(text string) string {
	if _, dates, ok := strings.Cut(text, "certificate has expired or is not yet valid: current time "); ok {
		dates = strings.TrimRight(dates, `"`)
		if strings.Contains(dates, " is before ") {
			return "its certificate is not valid yet: " + dates
		}
		return "its certificate has expired: " + dates
	}
	for _, known := range []struct{ has, says string }{
		{"connection refused", "connection refused: etcd does not run there"},
		{"no route to host", "cannot be reached: no route to host"},
		{"network is unreachable", "cannot be reached: network is unreachable"},
		{"no such host", "cannot be reached: no such host"},
		{"i/o timeout", "cannot be reached: no answer to the connection"},
		{"tls: certificate required", "wants a client certificate, and we show none"},
		{"tls: expired certificate", "refuses our certificate: it has expired"},
		{"tls: unknown certificate authority", "refuses our certificate: it is of another authority"},
		{"tls: bad certificate", "refuses our certificate"},
		{"signed by unknown authority", "its certificate is of another authority"},
		{"x509: certificate is valid for", "its certificate is made out to somebody else"},
		{"does not look like a TLS handshake", "it does not speak TLS"},
		{"keepalive ping failed", "does not answer to pings"},
		// gRPC itself closes a connection on which no greeting comes.
		{"use of closed network connection", "takes connections, but says nothing: it hangs, or is starting"},
		{"connection reset by peer", closed},
		{"broken pipe", closed},
		{"EOF", closed},
	} {
		if strings.Contains(text, known.has) {
			return known.says
		}
	}
	if is(errors.New(text), rpctypes.ErrGRPCNotSupportedForLearner) {
		return "it is a learner, which does not do this"
	}
	text = strings.TrimPrefix(text, "etcdserver: ")
	if text == "" {
		return "failed without a reason"
	}
	return text
}

// is compares errors of etcd: over the wire only their text stays the same.
func is(err, want error) bool { return rpctypes.ErrorDesc(err) == rpctypes.ErrorDesc(want) }

// lines is one line an endpoint, for Problem.Why.
func lines(answers []answer) string {
	var all []string
	for _, a := range answers {
		all = append(all, fmt.Sprintf("%s: %s", a.member.endpoint, a.lacks()))
	}
	return strings.Join(all, "\n")
}

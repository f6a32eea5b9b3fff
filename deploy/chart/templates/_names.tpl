{{- define "ferrule.labels" -}}
app.kubernetes.io/name: ferrule
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "ferrule.selector" -}}
app.kubernetes.io/name: ferrule
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ferrule.configMap" -}}
{{ .Values.configMap | default .Release.Name }}
{{- end }}

{{- define "ferrule.serviceAccount" -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- define "ferrule.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "ferrule.container" -}}
image: {{ include "ferrule.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumeMounts:
  - name: config
    mountPath: /var/lib/kube-proxy
    readOnly: true
  - name: xtables-lock
    mountPath: /run/xtables.lock
  - name: lib-modules
    mountPath: /lib/modules
    readOnly: true
{{- end }}

{{- define "ferrule.command" -}}
- /usr/local/bin/kube-proxy
- --config=/var/lib/kube-proxy/config.conf
- --hostname-override=$(NODE_NAME)
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
